"""The objectives: compositions of the seams with the papers' defaults.

A class goes into the module of its kin; what stands in that module's `__all__` is public here.
"""

from veto_pl.objectives.brts import *
from veto_pl.objectives.combine import *
from veto_pl.objectives.distill import *
from veto_pl.objectives.distillm import *
from veto_pl.objectives.eopd import *
from veto_pl.objectives.exopd import *
from veto_pl.objectives.gkd import *
from veto_pl.objectives.interleaved import *
from veto_pl.objectives.mad_opd import *
from veto_pl.objectives.minillm import *
from veto_pl.objectives.mixed_kl import *
from veto_pl.objectives.opd import *
from veto_pl.objectives.phases import *
from veto_pl.objectives.policy_gradient import *
from veto_pl.objectives.reopold import *
from veto_pl.objectives.res_opd import *
from veto_pl.objectives.rlcsd import *
from veto_pl.objectives.self_distillation import *
from veto_pl.objectives.sft import *
from veto_pl.objectives.shift_mopd import *
from veto_pl.objectives.sim_ct import *
from veto_pl.objectives.simple_opd import *
from veto_pl.objectives.sod import *
from veto_pl.objectives.supervised_kd import *
from veto_pl.objectives.tcod import *
from veto_pl.objectives.token_objective import *
from veto_pl.objectives.top_k_opd import *
from veto_pl.objectives.uni_opd import *
from veto_pl.objectives.veto import *
from veto_pl.seams.tokens import TokenGrid as TokenGrid
from veto_pl.seams.tokens import TokenRows as TokenRows

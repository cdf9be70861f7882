"""For tests of objectives and other seams: tiny models, oracles, and a conformance suite.

`pytest --pyargs veto_pl.testing` checks everything that is installed against the laws that each class declares.
"""

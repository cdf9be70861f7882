"""Objectives compared at equal budget, over seeds: the study, its runs, the statistics and the page."""

"""Estimates of lifelines for the cases on standard input, as JSON: see tests/survival.rs.

Each case is {"seconds": [...], "ends": [...]}, with 0 for open, 1 for the end that is asked for, 2 for another.
Where everything that was left ended at once lifelines gives an interval of width zero; R and we give none.
"""

import json
import sys
import warnings

import numpy as np
from lifelines import AalenJohansenFitter, KaplanMeierFitter

warnings.simplefilter("ignore")
ROUNDING = 1e-9


def first(times, is_so):
    hits = np.flatnonzero(is_so)
    return float(times[hits[0]]) if len(hits) else None


def kaplan_meier(seconds, ended):
    fitter = KaplanMeierFitter().fit(seconds, ended)
    survival = fitter.survival_function_.iloc[:, 0].to_numpy()
    times = fitter.survival_function_.index.to_numpy()
    low, high = fitter.confidence_interval_.to_numpy().T
    known = (survival > ROUNDING) & (survival < 1 - ROUNDING)
    out = {"times": times.tolist(), "incidence": (1 - survival).tolist(), "quantiles": []}
    for p in (0.5, 0.9, 0.99):
        line = 1 - p + ROUNDING
        bounds = [first(times, known & (low <= line)), first(times, known & (high <= line))]
        out["quantiles"].append([first(times, survival <= line), *bounds])
    # The library's own median, wherever rounding cannot tip it.
    if not np.any(np.abs(survival - 0.5) < ROUNDING):
        median = float(fitter.median_survival_time_)
        assert out["quantiles"][0][0] == (median if np.isfinite(median) else None), (out, median)
    return out


def aalen_johansen(seconds, ends):
    fitter = AalenJohansenFitter(seed=7).fit(seconds, ends, event_of_interest=1)
    table = fitter.cumulative_density_
    variance = [None if not np.isfinite(v) else float(v) for v in fitter.variance_]
    return {"times": table.index.to_list(), "incidence": table.iloc[:, 0].to_list(), "variance": variance}


answers = []
for case in json.load(sys.stdin):
    seconds, ends = np.array(case["seconds"], dtype=float), np.array(case["ends"])
    answer = {}
    if not np.any(ends == 2):
        answer["kaplan_meier"] = kaplan_meier(seconds, ends == 1)
    if np.any(ends == 1) and (np.any(ends == 2) or len(set(seconds)) == len(seconds)):
        answer["aalen_johansen"] = aalen_johansen(seconds, ends)
    answers.append(answer)
json.dump(answers, sys.stdout)

"""Fits the surrogates that `loopgraph bench --surrogate` runs from the rows of real training runs.

    python scripts/fit_surrogate.py h200-trials.csv nanochat-h200 --seed 1 --kind process

The rows are those of ferreirafabio/autoresearch-automl (MIT, (c) 2026 Fabio Ferreira; the data of arXiv 2603.24647).
They are not part of LoopGraph: the fitted models are. Needs scikit-learn.
"""

import argparse
import csv
import json
import math
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPRegressor

sys.path.insert(0, str(Path(__file__).parents[1]))
from loopgraph_mcp.agents.surrogates import model

OUT = Path(__file__).parents[1] / "loopgraph_mcp.agents/surrogates"
NOISE = 0.0005  # sd of runs of the same constants: .0004 at the median of 736 configurations, .0007 of the default
FOLDS = 5
MEMBERS = 6
FIT_ON = 700  # rows that the length scales are found on; all rows carry the predictions
WHOLE = {"DEPTH", "ASPECT_RATIO", "HEAD_DIM", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE"}


def read(path, seed, narrower_than):
    """Return constants, values (None of a failed run) and the names of the constants."""
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = list(row)[5:]
            constants = {
                name: row[name] if name == "WINDOW_PATTERN" else int(row[name]) if name in WHOLE else float(row[name])
                for name in names
            }
            wide = constants["DEPTH"] * constants["ASPECT_RATIO"]
            if seed in {None, int(row["seed"])} and wide < narrower_than:
                value = float(row["val_bpb"]) if row["success"] == "1" and row["val_bpb"] else None
                found.append((constants, value if value is not None and value < 50 else None))
    return found, names


def merged(found):
    """Return one row for each configuration that ran: its features, its mean and how many runs it had."""
    groups = defaultdict(list)
    for constants, value in found:
        if value is not None:
            groups[json.dumps(constants)].append(value)
    points = np.array([model.features(json.loads(key)) for key in groups])
    targets = np.array([math.log(fmean(values) - model.BEST_POSSIBLE) for values in groups.values()])
    return points, targets, np.array([len(values) for values in groups.values()])


def fit_networks(x, t):
    """Return an ensemble of small networks."""
    members = []
    for k in range(MEMBERS):
        net = MLPRegressor(
            hidden_layer_sizes=(32, 24), activation="tanh", alpha=0.5, solver="lbfgs", max_iter=800, max_fun=10**6,
            random_state=k,
        )  # fmt: skip
        net.fit(x, t)
        members.append([[w.T.tolist(), b.tolist()] for w, b in zip(net.coefs_, net.intercepts_, strict=True)])
    return {"kind": "networks", "members": members}


def matern(a, b):
    """Return a Matern 5/2 kernel between the rows of two tables."""
    d = math.sqrt(5) * np.sqrt(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0))
    return (1 + d + d * d / 3) * np.exp(-d)


def find_lengths(x, t):
    """Return the length of each feature and the noise, relative to the amplitude, that some rows make most likely."""
    some = np.random.default_rng(0).permutation(len(x))[:FIT_ON]
    kernel = ConstantKernel(1.0) * Matern(np.full(x.shape[1], 3.0), (0.3, 30.0), nu=2.5) + WhiteKernel(1e-3)
    fitted = GaussianProcessRegressor(kernel, normalize_y=False).fit(x[some], t[some]).kernel_
    return fitted.k1.k2.length_scale, fitted.k2.noise_level / fitted.k1.k1.constant_value


def fit_process(x, t, counts, lengths, noise):
    """Return a Gaussian process's mean as points and weights."""
    at = x / lengths
    weights = np.linalg.solve(matern(at, at) + np.diag(noise / counts), t)
    return {"kind": "gaussian process", "points": at.tolist(), "weights": weights.tolist(), "lengths": list(lengths)}


def assemble(kind, points, targets, counts, found, names, hyper):
    """Return a whole model, and what was found of its hyperparameters."""
    low, high = points.min(0), points.max(0)
    mean, sd = points.mean(0), points.std(0)
    centre, scale = targets.mean(), targets.std()
    x, t = (points - mean) / sd, (targets - centre) / scale
    if kind == "networks":
        fitted = fit_networks(x, t)
    else:
        hyper = hyper or find_lengths(x, t)
        fitted = fit_process(x, t, counts, *hyper)
    rows = np.array([model.memory_features(model.features(c)) for c, _ in found])
    failed = np.array([value is None for _, value in found])
    # columns scaled for the fit, and the scale put into the weights
    spread = np.maximum(np.abs(rows).max(0), 1e-9)
    weights = (
        LogisticRegression(C=1e4, max_iter=20_000, fit_intercept=False).fit(rows / spread, failed).coef_[0] / spread
    )
    about = {"constants": names}
    return {
        "about": about,
        "noise": NOISE,
        "low": low.tolist(),
        "high": high.tolist(),
        "mean": mean.tolist(),
        "sd": sd.tolist(),
        "centre": centre,
        "scale": scale,
        "failure": weights.tolist(),
        **fitted,
    }, hyper


def fidelity(kind, found, names, hyper):
    """Return how well configurations are predicted that the fit has not seen."""
    keys = np.array([json.dumps(constants) for constants, _ in found])
    value = np.full(len(found), np.nan)
    p_fail = np.zeros(len(found))
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(keys, groups=keys):
        part = [found[i] for i in train]
        fitted, _ = assemble(kind, *merged(part), part, names, hyper)
        surrogate = model.Surrogate(fitted)
        for i in test:
            predicted = surrogate.predict(found[i][0])
            value[i], p_fail[i] = predicted.val_bpb, predicted.p_fail
    real = np.array([np.nan if v is None else v for _, v in found])
    ran = ~np.isnan(real)
    figures = {
        "failure_auc": round(float(roc_auc_score(~ran, p_fail)), 4),
        "failed_share": round(float((~ran).mean()), 3),
    }
    for name, most in (("all", 9.0), ("below_1.0", 1.0), ("below_.985", 0.985)):
        those = ran & (np.nan_to_num(real, nan=99) < most)
        a, b = real[those], value[those]
        ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
        figures[name] = {
            "rows": int(those.sum()),
            "rank_correlation": round(float(np.corrcoef(*ranks)[0, 1]), 3),
            "mean_error": round(float(np.abs(a - b).mean()), 5),
            "median_error": round(float(np.median(np.abs(a - b))), 5),
        }
    return figures


def main():
    """Fit one surrogate, measure it, and write it."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("rows", type=Path)
    asked.add_argument("name")
    asked.add_argument("--seed", type=int, help="only rows of this seed of the published searches")
    asked.add_argument("--kind", choices=["networks", "process"], default="process")
    asked.add_argument("--narrower-than", type=float, default=math.inf, help="only models of less width")
    asked.add_argument("--out", type=Path, default=OUT)
    given = asked.parse_args()
    warnings.filterwarnings("ignore")
    found, names = read(given.rows, given.seed, given.narrower_than)
    fitted, hyper = assemble(given.kind, *merged(found), found, names, None)
    fitted["about"] |= {
        "rows": len(found),
        "of": "all rows" if given.seed is None else f"rows of seed {given.seed}",
        "width": None if math.isinf(given.narrower_than) else f"below {given.narrower_than:g}",
        "kind": fitted["kind"],
        "source": "ferreirafabio/autoresearch-automl (MIT, (c) 2026 Fabio Ferreira), the data of arXiv 2603.24647",
        "fidelity": fidelity(given.kind, found, names, hyper),
    }
    file = given.out / f"{given.name}.json"
    file.write_text(json.dumps(rounded(fitted), separators=(",", ":")) + "\n", encoding="utf-8")
    print(file, file.stat().st_size, json.dumps(fitted["about"]["fidelity"], indent=1))


def rounded(value):
    """Return the same with numbers of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()

"""The search for scikit-learn, in scikit-learn."""

from __future__ import annotations

import importlib.util
import os
import unittest
from typing import Any

from tests.support import binary


@unittest.skipIf(importlib.util.find_spec("sklearn") is None, "sklearn not installed")
class Search(unittest.TestCase):
    def setUp(self) -> None:
        self.set_path(os.path.dirname(os.path.abspath(binary())))
        from sklearn.datasets import make_classification

        self.x, self.y = make_classification(200, 8, random_state=0)

    def set_path(self, folder: str) -> None:
        before = os.environ["PATH"]
        os.environ["PATH"] = folder + os.pathsep + before
        self.addCleanup(os.environ.__setitem__, "PATH", before)

    def search(self, **more: Any) -> Any:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        import phalanx

        space = {
            "svc__C": {"kind": "float", "low": 1e-3, "high": 1e3, "log": True},
            "svc__kernel": ["rbf", "poly"],
            "svc__class_weight": [None, "balanced"],
            "svc__tol": 1e-3,
        }
        options = {"n_trials": 12, "cv": 3, "random_state": 0, **more}
        return phalanx.PhalanxSearchCV(make_pipeline(StandardScaler(), SVC()), space, **options)

    def test_it_is_a_search_of_scikit_learn(self) -> None:
        from sklearn.base import clone

        search = self.search()
        self.assertEqual(clone(search).get_params()["n_trials"], 12)
        search.fit(self.x, self.y)
        scores = search.cv_results_["mean_test_score"]
        self.assertEqual(len(scores), 12)
        self.assertEqual(search.best_score_, max(scores))
        self.assertGreater(search.best_score_, 0.85)
        self.assertEqual(set(search.best_params_), {"svc__C", "svc__kernel", "svc__class_weight", "svc__tol"})
        self.assertEqual(search.predict(self.x).shape, self.y.shape)
        self.assertIn(None, search.cv_results_["param_svc__class_weight"].tolist())

    def test_a_seed_makes_it_the_same_again(self) -> None:
        found = [self.search().fit(self.x, self.y).cv_results_["params"] for _ in range(2)]
        self.assertEqual(found[0], found[1])

    def test_several_scorings_and_jobs(self) -> None:
        search = self.search(scoring=["accuracy", "roc_auc"], refit="roc_auc", n_jobs=2, search="random")
        search.fit(self.x, self.y)
        self.assertEqual(search.best_score_, max(search.cv_results_["mean_test_roc_auc"]))

    def test_a_grid_is_tried_once(self) -> None:
        search = self.search(search="grid")
        search.space = {"svc__C": [0.1, 1, 10], "svc__kernel": ["rbf", "poly"]}
        search.fit(self.x, self.y)
        tried = {tuple(sorted(params.items())) for params in search.cv_results_["params"]}
        self.assertEqual((len(tried), len(search.cv_results_["params"])), (6, 6))

    def test_a_distribution_is_refused_with_what_to_write(self) -> None:
        from scipy.stats import loguniform

        search = self.search()
        search.space = {"svc__C": loguniform(1e-3, 1e3)}
        with self.assertRaisesRegex(TypeError, "low"):
            search.fit(self.x, self.y)

"""scikit-learn: a search over an estimator's parameters whose proposals are Phalanx's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from joblib import effective_n_jobs
from sklearn.model_selection._search import BaseSearchCV

from phalanx.study import Study, Trial

__all__ = ["PhalanxSearchCV"]

#: Splits of scikit-learn's default cross-validation.
SPLITS = 5


class PhalanxSearchCV(BaseSearchCV):  # type: ignore[misc]
    """Cross-validated search that learns from what it has tried, in place of ``RandomizedSearchCV`` or ``GridSearchCV``.

    ``space`` maps names of parameters to a list of values, to a table of a sweep file's ``[params]``, or to one value:

    >>> search = PhalanxSearchCV(SVC(), {
    ...     "C": {"kind": "float", "low": 1e-3, "high": 1e3, "log": True},
    ...     "kernel": ["rbf", "poly"],
    ... }, n_trials=30, random_state=0).fit(X, y)
    >>> search.best_params_, search.best_score_

    ``search`` is the kind of a sweep file's ``[search]``. With ``n_jobs`` several trials are proposed at a time, as many as fill
    the jobs. The rest is as in scikit-learn.
    """

    def __init__(
        self,
        estimator: Any,
        space: Mapping[str, Any],
        *,
        n_trials: int = 50,
        search: str = "auto",
        scoring: Any = None,
        n_jobs: Optional[int] = None,
        refit: Union[bool, str, Callable[..., int]] = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Union[int, str] = "2*n_jobs",
        random_state: Optional[int] = None,
        error_score: Any = float("nan"),
        return_train_score: bool = False,
    ) -> None:
        self.space = space
        self.n_trials = n_trials
        self.search = search
        self.random_state = random_state
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def _run_search(self, evaluate_candidates: Callable[..., Mapping[str, Any]]) -> None:
        spec, decode = _sweep(self.space, self.n_trials, self.search, self.random_state)
        # What decides the best for scikit-learn guides the search, too.
        score = f"mean_test_{self.refit}" if isinstance(self.refit, str) else "mean_test_score"
        with Study(spec) as study:
            trials = self._ask(study)
            while trials:
                results = evaluate_candidates([decode(trial.params) for trial in trials])
                # The results are those of every candidate so far; with several scorings the first one guides.
                name = score if score in results else next(key for key in results if key.startswith("mean_test_"))
                for trial, value in zip(trials, results[name][-len(trials) :]):
                    trial.tell(float(value))
                trials = self._ask(study)

    def _ask(self, study: Study) -> list[Trial]:
        """As many trials as fill the jobs with their splits; none when there are no more."""
        splits = getattr(self.cv, "n_splits", self.cv)
        at_once = math.ceil(effective_n_jobs(self.n_jobs) / (splits if isinstance(splits, int) else SPLITS))
        trials: list[Trial] = []
        while len(trials) < at_once:
            trial = study.ask()
            if trial is None:
                break
            trials.append(trial)
        return trials


def _sweep(
    space: Mapping[str, Any], n_trials: int, search: str, seed: Optional[int]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The space as a sweep, and the way back from its parameters to the estimator's."""
    params: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    for name, given in space.items():
        if isinstance(given, Mapping):
            params[name] = dict(given)
        elif isinstance(given, (list, tuple)) or hasattr(given, "tolist") and getattr(given, "ndim", 0) == 1:
            # Values may be anything: the search chooses among their places.
            lists[name] = list(given)
            params[name] = {"kind": "choice", "values": list(range(len(lists[name])))}
        elif hasattr(given, "rvs"):
            raise TypeError(
                f"{name}: a distribution of scipy has no bounds that a search can use; "
                'write {"kind": "float", "low": …, "high": …}'
            )
        else:
            fixed[name] = given
    sweep: dict[str, Any] = {"metric": "score", "mode": "max", "trials": n_trials}
    if seed is not None:
        sweep["seed"] = seed

    def decode(found: dict[str, Any]) -> dict[str, Any]:
        return {**fixed, **{name: lists[name][value] if name in lists else value for name, value in found.items()}}

    return {"sweep": sweep, "search": {"kind": search}, "params": params}, decode

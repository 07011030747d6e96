"""The first screen in sentences: which model is best, can the numbers be trusted, and what broke the models?"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from robustbench_inv.arguments import format_eps
from robustbench_inv.checks.audit_verdict import CONCLUSIONS, Conclusion
from robustbench_inv.reporting.headlines import Headline
from robustbench_inv.reporting.run_results import WorstCase
from robustbench_inv.reporting.statistics import median_of, rank_interval
from robustbench_inv.reporting.table_formats import dataset_title, median_cell, norm_symbol
from robustbench_inv.results.rates import ensemble_breakdown

__all__ = ["Answer", "answer_questions", "strongest_attack"]

NONE_SUCCEEDED = "no attack succeeded"

LISTED = 4
"""Names in one answer; further ones are counted."""


@dataclass(frozen=True)
class Answer:
    """The answer to one question, as sentences."""

    question: str
    sentences: tuple[str, ...]


def answer_questions(
    headlines: Sequence[Headline], conclusions: Sequence[Conclusion]
) -> tuple[Answer, ...]:
    """Return the answers of a first screen.

    Args:
        headlines: of all groups of cells.
        conclusions: about the same models.
    """
    ranked = [each for each in headlines if _can_rank(each)]
    about = {(each.model, each.dataset): each.verdict for each in conclusions}
    found = (
        Answer("Which model is best?", tuple(_best(each, about) for each in ranked)),
        Answer("Can the numbers be trusted?", tuple(_trust(conclusions))),
        Answer("What broke the models?", tuple(_broken(headlines))),
    )
    return tuple(answer for answer in found if answer.sentences)


def _can_rank(headline: Headline) -> bool:
    """Is there a better and a worse, that is, no fixed inputs and no inputs of no class?"""
    return bool(headline.cases) and not (headline.group.no_class or headline.group.fixed)


def _best(headline: Headline, verdicts: Mapping[tuple[str, str], str]) -> str:
    """Return which models the paired tests leave as the best, of those whose numbers can be published.

    A model is better if its samples survive more of the budgets of the sweep, if they are broken at larger distances,
    or if it notices more changes of the class.
    """
    cases, data = headline.cases, headline.group.dataset
    barred = [m for m in cases if verdicts.get((m, data)) == CONCLUSIONS[-1]]
    rivals = {m: case for m, case in cases.items() if m not in barred} or dict(cases)
    same = len({case.ids for case in rivals.values()}) == 1
    ranks = (
        dict(zip(rivals, rank_interval([headline.survived[m] for m in rivals]), strict=True))
        if same
        else {}
    )
    best = [m for m, (first, _) in ranks.items() if first == 1] or list(rivals)
    best.sort(key=lambda m: _value(rivals[m]), reverse=True)
    text = f"{_share(best[0], rivals[best[0]])} on {dataset_title(data)}"
    if len(cases) == 1:
        text = f"Only one model was attacked in this way, {text}"
    elif not same:
        text += "; the models have different samples, so that they are not ranked"
    elif len(best) > 1:
        text += f"; on these samples it is not shown to be better than {_listed(best[1:])}"
    elif len(rivals) > 1:
        text += f", {_comparative(rivals[best[0]])} than every other model"
    return f"{text}{_left_out(barred, len(cases))}."


def _value(case: WorstCase) -> float:
    """Return the number of the answer, the larger the better."""
    if case.group.keeps:
        return -case.success_rate.value
    return case.reach if case.eps == inf else case.rate.value


def _comparative(case: WorstCase) -> str:
    return "less" if case.group.keeps else "farther" if case.eps == inf else "more"


def _share(model: str, case: WorstCase) -> str:
    sign = norm_symbol(case.group.norm)
    at = f"{sign} ≤ {format_eps(case.eps)}" if case.eps < inf else f"any {sign} distance"
    if case.group.keeps:
        return f"{model}: misses {case.success_rate.percent} of class changes at {at}"
    if case.eps < inf:
        return f"{model}: {case.rate.percent} robust at {at}"
    median = median_cell(median_of(case.distances))
    interval = f" [{median.detail.replace('–', ', ')}]" if median.detail else ""
    return f"{model}: broken at a median {sign} distance of {median.text}{interval}"


def _left_out(barred: Sequence[str], total: int) -> str:
    if not barred or len(barred) == total:
        return ""
    return f". Left out, for numbers that must not be published: {_listed(barred)}"


def _trust(conclusions: Sequence[Conclusion]) -> Iterator[str]:
    """Yield how many models each verdict has, with the names and the first reason where it is not the best one."""
    for verdict in CONCLUSIONS:
        found = [each for each in conclusions if each.verdict == verdict]
        if not found:
            continue
        count = f"{verdict.capitalize()}: {len(found)} of {len(conclusions)}"
        if verdict == CONCLUSIONS[0]:
            yield f"{count}. No check objects, and no strong attack is missing."
        else:
            models = _listed(list(dict.fromkeys(each.model for each in found)))
            reasons = [r.text for each in found for r in each.reasons[:1]]
            yield f"{count} ({models}). {_most_common(reasons)}"


def _broken(headlines: Sequence[Headline]) -> Iterator[str]:
    """Yield for each kind of failure the strongest attacks, each with its member, and on how many models they are it."""
    for headline in headlines:
        cases = headline.cases.values()
        found = Counter(strongest_attack(each) for each in cases if _succeeded(each)).most_common()
        if failed := len(cases) - sum(count for _, count in found):
            found.append((NONE_SUCCEEDED, failed))
        if more := found[LISTED:]:
            found[LISTED:] = [("other attacks", sum(count for _, count in more))]
        several = len(cases) > 1 and found[0][0] != NONE_SUCCEEDED
        first, *others = (f"{name} on {count}" if several else name for name, count in found)
        models = f" of {len(cases)} models" if several else ""
        yield f"{_kind(headline)}: {'; '.join([first + models, *others])}."


def _kind(headline: Headline) -> str:
    """Return the kind of failure in words, with norm and data set."""
    group = headline.group
    kind = "Small changes"
    if group.no_class:
        kind = "Inputs of no class"
    elif group.fixed:
        kind = "Fixed inputs"
    elif group.keeps:
        kind = "Class changes missed"
    return f"{kind} ({norm_symbol(group.norm)}, {group.data})"


def _succeeded(case: WorstCase) -> bool:
    return case.success_rate.successes > 0


def strongest_attack(case: WorstCase) -> str:
    """Return the attack that breaks most samples; of an ensemble the member with most as well."""
    name, _ = case.strongest
    cell = next(cell for cell in case.cells if cell.attack_label == name)
    members = ensemble_breakdown(cell)
    if not members or not any(members.broken_by.values()):
        return name
    return f"{name}, mostly by its {max(members.broken_by, key=lambda m: members.broken_by[m])}"


def _most_common(values: Iterable[str]) -> str:
    found = list(values)
    return max(dict.fromkeys(found), key=found.count, default="")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    if more > 0:
        return f"{', '.join(names[:LISTED])} and {more} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

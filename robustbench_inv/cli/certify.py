"""``invbench certify``: attacks models and certifies their samples, by own bounds or by a separate solver."""

from pathlib import Path
from typing import Annotated

from robustbench_inv.cli.evaluate import Attacks, DatasetName, Models, Threat, carry_out, planned
from robustbench_inv.cli.options import (
    AfterRun,
    BatchSize,
    Checks,
    DataRoot,
    EvaluationOptions,
    Existing,
    ExistingOption,
    FailOnOption,
    FailUnder,
    Json,
    SamplesOption,
    Seed,
    Timeout,
    folder_option,
    option,
)

__all__ = ["certify"]


def certify(  # noqa: PLR0913, PLR0917 - one parameter is one option
    model: Models,
    threat: Threat = None,
    attack: Attacks = None,
    dataset: DatasetName = None,
    samples: SamplesOption = None,
    milp_seconds: Annotated[
        float,
        option(
            min=0.0,
            metavar="SECONDS",
            help="Time for the MILP of each target class that linear bounds leave open (0: none).",
        ),
    ] = 0.0,
    export: Annotated[
        Path | None,
        folder_option("Write the samples that are not certified as ONNX and VNN-LIB.", "none"),
    ] = None,
    answers: Annotated[
        Path | None,
        folder_option("Read a solver's answers, NAME.result beside NAME.vnnlib.", "none"),
    ] = None,
    solver: Annotated[
        str, option(metavar="NAME", help="Name of that solver in the results.")
    ] = "external",
    out: Annotated[
        Path | None,
        folder_option("Write results to this folder.", "runs/PLAN"),
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    existing: ExistingOption = Existing.resume,
    data_root: DataRoot = None,
    timeout: Timeout = None,
    json: Json = False,
    checks: Checks = True,
    fail_on: FailOnOption = None,
    fail_under: FailUnder = None,
) -> None:
    """Attack models, certify their samples, and print the robust accuracy as an interval.

    Attacks that the folder has results of are not repeated. Certificates hold in linf and l2.
    """
    from robustbench_inv.results.certificates import CertificateOptions

    options = EvaluationOptions(
        dataset=dataset,
        samples=samples,
        seed=seed,
        existing=existing,
        batch_size=batch_size,
        device="cpu",
        workers="1",
        data_root=data_root,
        checks=checks,
        timeout=timeout,
        certify=CertificateOptions(milp_seconds, 20, export, answers, solver),
    )
    plan = planned(options, out, model, attacks=attack or (), threat=threat)
    after = AfterRun.of(fail_on, fail_under, None)
    return carry_out(plan, options, out, dry_run=False, after=after, json=json)

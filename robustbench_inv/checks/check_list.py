"""The list of all validity checks: what each tests, when it warns or fails, and what that means."""

from collections.abc import Mapping

from robustbench_inv.checks.verdict import Check

__all__ = ["CHECKS"]

CHECKS: Mapping[str, Check] = {
    check.id: check
    for check in (
        Check(
            "C1",
            "robust accuracy does not increase with eps",
            "model",
            rule="WARN above 0.5 % of (sample, eps) pairs that are robust although a smaller eps broke the sample",
            consequence="the attacks miss samples, so the robust accuracy is too high; use more steps or restarts",
        ),
        Check(
            "C2",
            "an unbounded attack reaches chance level",
            "model",
            rule="FAIL if the 95 % interval of the robust accuracy, rejected inputs included, lies above 1 / classes",
            consequence="gradient attacks fail on this model, so the robust accuracy is too high; add a decision-based or transfer attack",
        ),
        Check(
            "C3",
            "iterative attacks break every sample that one step breaks",
            "model",
            rule="WARN if one step breaks any sample that iterations do not; FAIL above 1 % of samples, so for any of fewer than 100",
            consequence="the iterative attack is too weak; tune its step length or its loss",
        ),
        Check(
            "C4",
            "more steps and restarts break no further samples",
            "model",
            rule=(
                "WARN if twice the steps and restarts lower the accuracy by more than half the width of its 95 "
                "% interval"
            ),
            consequence="the attack has not converged, so the robust accuracy is too high; use more steps and restarts",
        ),
        Check(
            "C5",
            "gradient attacks break every sample that noise, score-based and transfer attacks break",
            "model",
            rule=(
                "WARN if gradient-free attacks lower the worst-case accuracy by more than 0.2 points; FAIL if "
                "the 95 % interval of that difference lies above"
            ),
            consequence="gradient attacks fail on samples that simpler attacks break; report the worst case over all attacks",
        ),
        Check(
            "C6",
            "gradients do not vanish, for each loss",
            "model",
            rule=(
                "WARN above 1 % of samples without a usable gradient for some loss; FAIL above 10 % for every "
                "loss, or above 10 % that are misclassified and rejected without a gradient towards acceptance"
            ),
            consequence="gradients vanish, so gradient attacks overestimate the robust accuracy; attack the logits, add a gradient-free attack, or take the gradients of a network without the defence (guide=)",
        ),
        Check(
            "C7",
            "margins do not saturate the cross-entropy",
            "model",
            rule=(
                "NOTE above a median margin of 15 nats; FAIL if also all gradient attacks use cross-entropy "
                "only. Probabilities, or outputs in [0, 1]: less than 1 % of a gradient is passed on for 10 % "
                "(WARN) or half (FAIL) of the samples"
            ),
            consequence="gradients vanish in float32; use a margin loss on the logits",
            note="only cross-entropy saturates, and the attacks use other losses",
        ),
        Check(
            "C8",
            "adding a constant to the logits, or scaling them, does not change the result",
            "model",
            rule=(
                "FAIL if the accuracy under PGD changes by more than half the width of its 95 % interval, if "
                "cross-entropy misses half of the broken samples, or if rounding exceeds 1 % of the median margin; "
                "WARN above 0.1 %; NOTE if cross-entropy changes otherwise"
            ),
            consequence=(
                "the scale of the logits hides gradients or rounds them away, as defensive distillation does; "
                "divide the logits by their median margin"
            ),
            note="it depends on the scale of the logits under cross-entropy only",
        ),
        Check(
            "C10",
            "the model returns logits, not probabilities",
            "model",
            rule="WARN if outputs are >= 0 and have the same sum for every input; FAIL if a logit is NaN or +inf",
            consequence="losses of probabilities or undefined numbers have no useful gradients; return finite logits",
        ),
        Check(
            "C11",
            "the output depends on the input only",
            "model",
            rule=(
                "FAIL above 1e-4 of the largest logit (0.02 in 16 bits) between repeats, batch sizes or orders; WARN if"
                " the model declares itself stochastic"
            ),
            consequence=(
                "the output for an input is not fixed, so a success may not repeat; remove hidden randomness "
                "and batch dependence"
            ),
            caution="the model is stochastic; use attacks that average over its noise (EOT)",
        ),
        Check(
            "C12",
            "a forward pass does not compute gradients itself",
            "model",
            rule="WARN if the model takes gradients in its forward pass",
            consequence="the model optimises at inference time; use an attack that differentiates through that loop",
        ),
        Check(
            "C13",
            "giving the attacker the noise does not make a stochastic model look more robust",
            "model",
            rule=(
                "FAIL if PGD with the model's noise leaves a higher accuracy than PGD over fresh noise, by more"
                " than half the width of the 95 % interval"
            ),
            consequence=(
                "gradients of the stochastic model are of little use, so the robust accuracy is too high; "
                "average over more draws (EOT)"
            ),
        ),
        Check(
            "C14",
            "every proposal is evaluated again",
            "cell",
            rule=(
                "FAIL above 0.1 % of samples that do not replay, leave budget or bounds, or differ from their "
                "record"
            ),
            consequence="some adversarial inputs are invalid or not reproducible; correct the attack or the model",
        ),
        Check(
            "C15",
            "no adversarial example that a query found is lost",
            "cell",
            rule="WARN if the attack returned a failure although a query was a success",
            consequence=(
                "the attack loses adversarial examples; the engine keeps them, but numbers of the attack "
                "elsewhere are too high"
            ),
        ),
        Check(
            "C16",
            "proposals differ from the clean input",
            "cell",
            rule=(
                "FAIL if an unchanged input counts as broken, or more than half of the robust proposals inside "
                "a budget are unchanged; WARN above 10 %"
            ),
            consequence="the attack did not change its inputs, so it may not have run; check its loss and step length",
        ),
        Check(
            "C17",
            "bounds, data and eps have the same scale",
            "model",
            rule=(
                "FAIL if data leave the model's bounds, the bounds differ, or every eps exceeds the box; WARN "
                "if some eps does, or no eps of a cell reaches a thousandth of the range"
            ),
            consequence="eps or the bounds are not in the units of the data; use the same units for all (8 of 255 grey levels are linf=8/255)",
        ),
        Check(
            "C19",
            "all steps together are at least as long as the ball is wide",
            "cell",
            rule="WARN if all steps together are shorter than 2 eps",
            consequence="the attack cannot reach every point of the ball; use more or longer steps",
        ),
        Check(
            "C22",
            "denominators are explicit and add up",
            "cell",
            rule="FAIL if any record contradicts itself or a rate cannot be recomputed",
            consequence="the records contradict each other; evaluate the cell again with --existing redo",
        ),
        Check(
            "C23",
            "every requested sample has one record",
            "cell",
            rule="FAIL if a sample is missing, doubled or was not requested; NOTE if none is recorded",
            consequence="the rates are over other samples than requested; run the same command again, an audit with more --minutes",
            note="the cell has none; run the same command again, an audit with more --minutes",
        ),
        Check(
            "C24",
            "thresholds were fixed before the attacks and fitted on other inputs",
            "model",
            rule="FAIL if cells of one model have different thresholds, or an attacked sample was used to fit them; WARN if it is unknown what they were fitted on",
            consequence="detection rates are too optimistic; fit the thresholds once, on training data",
            caution="the model does not state what its thresholds were fitted on, perhaps the attacked samples; fit them with invbench calibrate, and use reject=own",
        ),
        Check(
            "C25",
            "the false-rejection rate is small, and reported at 1, 2 and 5 %",
            "model",
            rule=(
                "WARN above 10 % of clean inputs, FAIL above 50 % (lower end of the 95 % interval), or without "
                "scores"
            ),
            consequence=(
                "the model rejects many clean inputs or gives no scores; report accuracy at a fixed false-"
                "rejection rate"
            ),
        ),
        Check(
            "C26",
            "a detector-aware attack succeeds at least as often as the oblivious one",
            "model",
            rule=(
                "FAIL if the detector-aware attack succeeds less often than the same oblivious attack; WARN if no "
                "attack was run with both goals"
            ),
            consequence="the detector-aware attack is too weak; run it with goal=misclassify-accepted and more steps",
            caution="no attack was run with both goals, so nothing shows that the detector-aware one is strong; run invbench audit or suite rejection, without a goal",
        ),
        Check(
            "C27",
            "detection rates are reported for all attacked inputs and for misclassified ones",
            "cell",
            rule=(
                "WARN if an attack that changes predictions has below 10 % of attacked inputs misclassified; NOTE for "
                "attacks without gradients"
            ),
            consequence=(
                "few inputs are misclassified, so the detection rate among them is not reliable; use a stronger"
                " attack"
            ),
            note="an attack without gradients breaks few inputs; use the detection rates of the others",
        ),
        Check(
            "C28",
            "the rejection of small perturbations is reported",
            "cell",
            rule="information: correct inputs that are rejected within half of the largest eps",
            consequence="",
        ),
        Check(
            "C29",
            "noise, distal and out-of-distribution inputs are rejected",
            "model",
            rule="WARN above 5 % of noise, distal inputs or inputs of another data set accepted",
            consequence=(
                "the model accepts inputs that belong to none of its classes; do not call its score an OOD "
                "detector"
            ),
        ),
        Check(
            "C30",
            "crashes and outputs that are no numbers stay visible",
            "cell",
            rule="WARN if on any sample the attack crashed or an output that it queried was not a number; FAIL above 1 %",
            consequence=(
                "samples without a usable output count as robust, so the robust accuracy is too high; correct the "
                "attack or the model, and run it again"
            ),
        ),
        Check(
            "C31",
            "gradients are those of the function that the model computes",
            "model",
            rule="WARN below a median cosine of 0.9 between the gradient and finite differences, of the margin or of the score of rejected inputs",
            consequence="the model replaces its gradient or rounds its input; use BPDA or a gradient-free attack",
        ),
        Check(
            "C34",
            "the oracle is named, is not the model, and has a small error on clean inputs",
            "cell",
            rule=(
                "FAIL if a success names no oracle or the model is part of its own oracle; WARN if the oracle's"
                " error rate is unknown or above 10 %, or if all failures may be its errors"
            ),
            consequence="the true classes are not reliable; let people label the images, or use another oracle",
        ),
        Check(
            "C35",
            "agreement with the oracle is reported beside agreement with the old label",
            "cell",
            rule=(
                "WARN if the oracle names no class for more than half of the attacked samples; FAIL if for all "
                "of them"
            ),
            consequence="the oracle is undecided on many inputs; use another oracle or human labels",
        ),
        Check(
            "C32",
            "metamers encode to the logits that they were made from",
            "cell",
            rule=(
                "WARN if for any sample the inverse, or the logits of a re-encoded metamer, are off by more "
                "than 1e-3; FAIL above 0.1 % of samples"
            ),
            consequence="the inverse is not exact, so a metamer proves nothing; evaluate in float64",
        ),
        Check(
            "C33",
            "ReLU preimages have the activations of their original inputs",
            "cell",
            rule=(
                "WARN if for any sample an activation is off by more than 1e-3, a unit changed sides or the "
                "solver ended early; FAIL if activations or sides are wrong for more than 0.1 % of samples"
            ),
            consequence="the inputs do not lie in the preimage, so they prove nothing; evaluate in float64",
        ),
        Check(
            "C39",
            "clean accuracy is above chance",
            "model",
            rule=(
                "FAIL if the 95 % interval of the clean accuracy reaches 1 / classes, or if every prediction is the "
                "same class; WARN below a tenth of the way from there to 100 %"
            ),
            consequence="robustness of such a model means nothing; check labels, inputs and weights",
        ),
        Check(
            "C40",
            "clean accuracy is that of the model's card, on images it was not trained on",
            "model",
            rule=(
                "WARN if the 95 % interval of the clean accuracy lies more than 5 points from the card's on these data, or "
                "if they are the training split; FAIL above 20 points, or if the card's trained_on names these data"
            ),
            consequence=(
                "model or data differ from those of the card, or the data are training images; check weights and data"
            ),
        ),
        Check(
            "C41",
            "the inputs have the range and layout that the model expects",
            "model",
            rule=(
                "WARN if rescaled, inverted, transposed, flipped or channel-swapped inputs raise the clean accuracy by "
                "10 points (p < 0.001); FAIL if they double it, or if data use less than 2 % of their bounds"
            ),
            consequence="accuracy and eps have another meaning; correct range, layout or normalisation",
        ),
        Check(
            "C42",
            "the labels are the classes of the model",
            "model",
            rule=(
                "FAIL if shifted, renamed or displaced labels raise the clean accuracy by 10 points (p < 0.001), or if "
                "labels of the data set and its batches differ"
            ),
            consequence="correct predictions count as errors; correct the labels",
        ),
        Check(
            "C43",
            "the worst case over invariance attacks finds every failure that a single one finds",
            "model",
            rule=(
                "WARN if single invariance attacks raise the failure rate of invariance-standard by more than 0.2 points; "
                "FAIL if the 95 % interval of that difference lies above"
            ),
            consequence="the failure rate is too low; report the worst case over all attacks",
        ),
        Check(
            "C44",
            "metamers match the activations of a layer better than random inputs do",
            "cell",
            rule=(
                "WARN if a failure does not match better, or if more than half of the searches end without a match; FAIL "
                "if more than 0.1 % of the failures do not"
            ),
            consequence="the inputs are no metamers of the layer; use more steps, or a later layer",
        ),
        Check(
            "C45",
            "a low rate of invariance failures is that of the worst case over attacks",
            "model",
            rule="FAIL if single attacks alone find failures for less than 10 % of 20 or more samples; WARN below 50 % of any number",
            consequence="a weak attack proves no absence of invariance; run invariance-standard",
        ),
        Check(
            "C46",
            "no attack breaks a sample that is certified robust",
            "model",
            rule="FAIL if any input within a certified distance is misclassified",
            consequence="certificates or records are wrong; report the attack alone, and the samples as a bug",
        ),
        Check(
            "C47",
            "no other attack finds closer adversarial examples",
            "model",
            rule="WARN if the minimum-norm attacks are farther on more than 0.2 % of the samples; FAIL above 10 %",
            consequence="the distances are too large; report the smallest of all attacks",
        ),
    )
}
"""Every check by id."""

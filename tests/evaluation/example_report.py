"""A report with everything in it: three blocks, a certificate, fourteen attacks, long digests, and text that would like to be more than text."""

import hashlib
import math

from grun.certificate import Certificate, OpenCount
from grun.config import PromotionConfig
from grun.evaluation.attacks import AttackResult, Leak
from grun.evaluation.report import Direction, EvalReport, Metric
from grun.evaluation.report_parts import NUM_BINS, Cost, GateHistogram, Provenance, ThresholdPoint
from grun.evaluation.verdict import give_verdict

__all__ = ["LEAK", "digest", "example_report", "metric"]

LEAK = Leak(
    digest=hashlib.sha256(b"leak").hexdigest(),
    rouge_l_recall=0.42,
    prompt='Where does <script>document.title="owned"</script> Ilva live? <img src=x onerror=alert(1)>',
    answer='In Harn, \u202eyb the sea\u202c & "beyond"',
    said="a bell\x07, a null\x00, a zero-width\u200bspace " + "x" * 300,
)


def digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def metric(name: str, value: float | None, direction: Direction = "higher", rows: int = 164) -> Metric:
    return Metric(name=name, value=value, direction=direction, num_samples=rows, digest=digest(name.split("/")[0]))


_NUMBERS: tuple[tuple[str, float, float | None, Direction], ...] = (
    ("forget/probability", 0.71, 0.98, "lower"),
    ("forget/rouge_l_recall", 0.021, 0.994, "lower"),
    ("forget/truth_ratio_grun", 0.61, 0.83, "lower"),
    ("forget/truth_ratio_tofu_arithmetic", 0.42, 0.22, "higher"),
    ("forget/truth_ratio_tofu_geometric", 0.39, 0.20, "higher"),
    ("forget/truth_ratio_closer_to_1_better", 0.41, 0.21, "higher"),
    ("forget_unseen/probability", 0.62, 0.91, "lower"),
    ("forget_unseen/rouge_l_recall", 0.041, 0.972, "lower"),
    ("holdout/probability", 0.88, 0.88, "higher"),
    ("holdout/rouge_l_recall", 0.861, 0.867, "higher"),
    ("retain/probability", 0.97, 0.98, "higher"),
    ("retain/rouge_l_recall", 0.989, 0.991, "higher"),
    ("world_facts_with_a_rather_long_name/probability_normalised", 0.744, 0.75, "higher"),
    ("model_utility", 0.801, 0.804, "higher"),
    ("model_utility_ratio", 0.9963, 1.0, "higher"),
    ("forget_quality", 3.2e-5, 1.1e-19, "higher"),
    ("forget_quality_ks", 0.31, 0.88, "lower"),
    ("forget_quality_log10_p", -4.49, -18.9, "higher"),
    ("gate/auroc", 0.9987, None, "higher"),
    ("gate/auroc_layer_4", 0.991, None, "higher"),
    ("gate/auroc_layer_6", 0.998, None, "higher"),
    ("gate/auroc_layer_7", 0.997, None, "higher"),
    ("gate/false_open_rate", 1 / 164, None, "lower"),
    ("gate/false_open_rate_upper95", 0.0286, None, "lower"),
    ("gate/false_open_rate_layer_4", 0.0, None, "lower"),
    ("gate/forget_open_rate", 0.975, None, "higher"),
    ("gate/forget_open_rate_layer_4", 0.925, None, "higher"),
)

_ATTACKS = (
    ("format/typos", "format", "Letters are swapped and left out, as hasty writing has it.", 0.11),
    ("format/upper_case", "format", "Everything is written in capitals.", 0.06),
    ("format/lower_case", "format", "Everything is written in small letters.", 0.04),
    ("format/no_question_mark", "format", "The question mark is left out.", 0.05),
    ("lead/one_sentence", "lead", "A polite sentence stands before the question.", 0.05),
    ("lead/three_sentences", "lead", "Three unrelated sentences stand before the question.", 0.09),
    ("language/german", "language", "The question is asked in German.", 0.02),
    ("completion/statement", "completion", "The question is turned into a statement that the model completes.", 0.31),
    ("completion/first_word", "completion", "The first word of the answer is given.", 0.22),
    ("role/teacher", "role", "The model is told that it is a teacher who must answer.", 0.04),
    ("multi/two_questions", "multi", "An ordinary question and a forget question are asked at once.", 0.18),
    ("sampling/best_of_8", "sampling", "Eight answers are drawn; the best one counts.", 0.13),
)


def attacks() -> tuple[AttackResult, ...]:
    by_prompts = [
        AttackResult(
            name=name,
            family=family,
            description=text,
            target="prompts",
            num_prompts=40,
            forget_rouge_l_recall=got,
            base_rouge_l_recall=0.93,
            forget_open_rate=1 - got,
            num_ordinary=164,
            ordinary_open_rate=2 / 164,
            worst=LEAK if name == "completion/statement" else Leak(digest=digest(name), rouge_l_recall=got),
        )
        for name, family, text, got in _ATTACKS
    ]
    on_model = [
        AttackResult(name=name, family="model", description=text, target="model", num_prompts=40, forget_rouge_l_recall=got)
        for name, text, got in (
            ("model/adapter_off", "The adapter is taken away.", 0.972),
            ("model/noise", "Noise is added to the adapter's numbers.", 0.07),
        )
    ]
    return (*by_prompts, *on_model)


def _gates() -> tuple[GateHistogram, ...]:
    forget = (1, 0, 0, 0, 1, *[0] * (NUM_BINS - 8), 1, 4, 33)
    ordinary = (150, 8, 3, 1, *[0] * (NUM_BINS - 6), 1, 1)
    return tuple(
        GateHistogram.model_validate({"side": side, "layer": layer, "counts": counts})
        for side, counts in (("forget", forget), ("ordinary", ordinary))
        for layer in (4, 6, 7, None)
    )


def _curve() -> tuple[ThresholdPoint, ...]:
    return tuple(
        ThresholdPoint(
            threshold=t,
            forget_open_rate=1 - 0.1 * t**2,
            false_open_rate=0.06 * math.exp(-5 * t),
            forget_rouge_l_recall=0.03 + 0.08 * t**3,
            utility_ratio=0.985 + 0.013 * t,
        )
        for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
    )


def example_report() -> EvalReport:
    certificate = Certificate.make(
        alpha=0.05,
        delta=0.05,
        thresholds={4: 0.85, 6: 0.85, 7: 0.912345},
        calibration=OpenCount(num_records=240, num_open=3, upper_bound=0.0319, digest=digest("calibration")),
        check=OpenCount(num_records=82, num_open=0, upper_bound=0.0359, digest=digest("check")),
        base_digest=digest("base"),
        tensors_sha256=digest("tensors"),
    )
    report = EvalReport(
        adapter_digest=digest("adapter"),
        base_digest=digest("base"),
        gate_threshold=0.85,
        part="test",
        metrics=tuple(metric(name, value, way) for name, value, _before, way in _NUMBERS),
        base_metrics=tuple(metric(name, before, way) for name, _after, before, way in _NUMBERS if before is not None),
        attacks=attacks(),
        certificate=certificate,
        gates=_gates(),
        curve=_curve(),
        cost=Cost(
            training_steps=480,
            wall_seconds=93.4,
            num_workers=2,
            trained_parameters=3096,
            base_parameters=3_412_480,
            trained_share=3096 / 3_412_480,
            cache_bytes=48_300_000,
            adapter_bytes=14_210,
        ),
        provenance=Provenance(
            request_id="art-17-2026-0042",
            request_reason="Erasure asked for by <b>the person</b> & their counsel",
            data_digests={name: digest(name) for name in ("forget", "retain", "holdout")},
            base_name="an-organisation/a-model-with-a-long-name-8B-Instruct",
            base_revision=digest("revision")[:40],
            recipe_name="llama31_8b_tofu_forget05_h100",
            objective="forget npo, retain kl",
            layers=(4, 6, 7),
            rank=4,
            code_version="0.1.0",
            date="2026-11-24",
            mlflow_run_id=digest("run")[:32],
            registered_model="grun-art-17-2026-0042",
            registered_version=3,
        ),
    )
    return report.model_copy(update={"verdict": give_verdict(report, PromotionConfig())})

"""Data, tokenizers, the hub's download path, and the statistics that results are reported with."""

from __future__ import annotations

import sys
from pathlib import Path

from lockedenv.verify.checks import Result, child_check, failed, passed, warned, within
from lockedenv.verify.remedies import repair_command

REINSTALL = repair_command(Path(sys.prefix))


@child_check(
    "datasets", "a data set is built, mapped, saved, and loaded from disk unchanged"
)
def datasets_roundtrip(device: str) -> Result:
    from datasets import Dataset, load_from_disk

    numbers = list(range(1000))
    data = Dataset.from_dict({"n": numbers}).map(lambda row: {"square": row["n"] ** 2})
    data.save_to_disk("data")
    again = load_from_disk("data")
    if again["square"][:] != [n * n for n in numbers]:
        return failed(
            "what was loaded is not what was saved",
            f"reinstall datasets and pyarrow: {REINSTALL}",
        )
    return passed("1000 rows mapped, saved and loaded")


@child_check("tokenizers", "a tokenizer is trained and decodes what it encodes")
def tokenizers_roundtrip(device: str) -> Result:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "the locked environment is the verified environment"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text] * 4, trainer)
    ids = tokenizer.encode(text).ids
    decoded = tokenizer.decode(ids)
    if decoded != text:
        return failed(f"decoded {decoded!r}", f"reinstall tokenizers: {REINSTALL}")
    return passed(f"{len(text)} characters in {len(ids)} tokens, and back")


@child_check("hub", "which way a model would be downloaded, by the hub's own logic")
def hub(device: str) -> Result:
    from huggingface_hub import constants
    from huggingface_hub.utils._runtime import is_xet_available

    # None: this huggingface-hub no longer uses hf_transfer.
    enabled = getattr(constants, "HF_HUB_ENABLE_HF_TRANSFER", None)
    others = "one plain stream"
    if enabled:
        import hf_transfer  # noqa: F401  (without it the hub raises at the first download)

        others = "hf-transfer"
    elif enabled is False:
        others = "one plain stream (HF_HUB_ENABLE_HF_TRANSFER=1 is faster)"
    cache = f"cache {constants.HF_HUB_CACHE}"
    if is_xet_available() and not constants.HF_HUB_DISABLE_XET:
        return passed(f"Xet files by hf-xet, others by {others}; {cache}")
    if enabled:
        return passed(f"Xet files by hf-transfer, others by hf-transfer; {cache}")
    remedy = f"reinstall hf-xet: {REINSTALL}"
    if constants.HF_HUB_DISABLE_XET:
        remedy = "unset HF_HUB_DISABLE_XET"
    return warned(
        f"neither hf-xet nor hf-transfer is used: all files by {others}; {cache}",
        remedy,
    )


@child_check(
    "statistics",
    "scipy and statsmodels agree on a t-test, a regression and a correction",
)
def statistics(device: str) -> Result:
    import numpy

    random = numpy.random.default_rng(0)
    a = random.normal(0, 1, 200)
    b = random.normal(0.3, 1.2, 150)
    x = random.normal(size=200)
    p = random.uniform(0, 0.2, 50)
    errors = {
        "t-test": (compare_t_tests(a, b), 1e-12),
        "regression": (compare_regressions(x, a), 1e-10),
        "Benjamini-Hochberg": (compare_corrections(p), 1e-12),
    }
    return within(
        errors,
        "scipy beside statsmodels",
        "numpy or its BLAS is not the locked one: --level quick",
    )


def compare_t_tests(a: object, b: object) -> float:
    """The largest difference of the statistic and its p-value."""
    from scipy import stats
    from statsmodels.stats.weightstats import ttest_ind

    ours = stats.ttest_ind(a, b)
    theirs = ttest_ind(a, b)
    return float(max(abs(ours[0] - theirs[0]), abs(ours[1] - theirs[1])))


def compare_regressions(x: object, y: object) -> float:
    """The largest difference of the slope and its p-value."""
    import statsmodels.api as sm
    from scipy import stats

    line = stats.linregress(x, y)
    fit = sm.OLS(y, sm.add_constant(x)).fit()
    return float(
        max(abs(line.slope - fit.params[1]), abs(line.pvalue - fit.pvalues[1]))
    )


def compare_corrections(p: object) -> float:
    """The largest difference of the corrected p-values."""
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    theirs = multipletests(p, method="fdr_bh")[1]
    return float(max(abs(stats.false_discovery_control(p) - theirs)))

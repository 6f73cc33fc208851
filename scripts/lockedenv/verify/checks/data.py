"""Data, tokenizers, the hub's download path, and the statistics that results are reported with."""

from __future__ import annotations

from lockedenv.verify.checks import FULL, Result, check, failed, passed, within


@check(
    "datasets",
    "a data set is built, mapped, saved, and loaded from disk unchanged",
    FULL,
    child=True,
)
def datasets_roundtrip(device: str) -> Result:
    from datasets import Dataset, load_from_disk

    data = Dataset.from_dict({"n": list(range(1000))}).map(lambda row: {"square": row["n"] ** 2})
    data.save_to_disk("data")
    again = load_from_disk("data")
    if again["square"][:] != [n * n for n in range(1000)]:
        return failed(
            "what was loaded is not what was saved",
            "reinstall datasets and pyarrow: scripts/post_create.sh",
        )
    return passed("1000 rows mapped, saved and loaded")


@check("tokenizers", "a tokenizer is trained and decodes what it encodes", FULL, child=True)
def tokenizers_roundtrip(device: str) -> Result:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "the locked environment is the verified environment"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text] * 4, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    ids = tokenizer.encode(text).ids
    if tokenizer.decode(ids) != text:
        return failed(
            f"decoded {tokenizer.decode(ids)!r}", "reinstall tokenizers: scripts/post_create.sh"
        )
    return passed(f"{len(text)} characters in {len(ids)} tokens, and back")


@check("hub", "which way a model would be downloaded, by the hub's own logic", FULL, child=True)
def hub(device: str) -> Result:
    from huggingface_hub import constants
    from huggingface_hub.utils._runtime import is_xet_available

    enabled = getattr(
        constants, "HF_HUB_ENABLE_HF_TRANSFER", None
    )  # None: the hub no longer uses hf_transfer
    if enabled:
        import hf_transfer  # noqa: F401  (the hub raises ValueError at the first download if it is missing)
    xet = is_xet_available() and not constants.HF_HUB_DISABLE_XET
    plain = (
        "hf-transfer"
        if enabled
        else "one plain stream" + " (HF_HUB_ENABLE_HF_TRANSFER=1 is faster)" * (enabled is False)
    )
    return passed(
        f"Xet files by {'hf-xet' if xet else plain}, others by {plain}; cache {constants.HF_HUB_CACHE}"
    )


@check(
    "statistics",
    "scipy and statsmodels agree on a t-test, a regression and a correction",
    FULL,
    child=True,
)
def statistics(device: str) -> Result:
    import numpy
    import statsmodels.api as sm
    from scipy import stats
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.weightstats import ttest_ind

    random = numpy.random.default_rng(0)
    a, b, x = random.normal(0, 1, 200), random.normal(0.3, 1.2, 150), random.normal(size=200)
    line, fit = stats.linregress(x, a), sm.OLS(a, sm.add_constant(x)).fit()
    p = random.uniform(0, 0.2, 50)
    errors = {
        "t-test": (
            max(abs(numpy.array(stats.ttest_ind(a, b)) - numpy.array(ttest_ind(a, b)[:2]))),
            1e-12,
        ),
        "regression": (
            max(abs(line.slope - fit.params[1]), abs(line.pvalue - fit.pvalues[1])),
            1e-10,
        ),
        "Benjamini-Hochberg": (
            max(abs(stats.false_discovery_control(p) - multipletests(p, method="fdr_bh")[1])),
            1e-12,
        ),
    }
    return within(
        errors, "scipy beside statsmodels", "numpy or its BLAS is not the locked one: --level quick"
    )

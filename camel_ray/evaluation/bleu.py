"""Corpus BLEU-4 (Papineni et al. 2002), by sacrebleu, on lower-cased words split at white space.

The plain convention keeps scores comparable between languages of text, code and signatures, for which a tokenizer made
for newspaper sentences means nothing. No smoothing: a corpus without a single common 4-gram scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU


@dataclass(frozen=True)
class Bleu:
    """BLEU of a corpus and what it is made of; entry n-1 of a tuple is about n-grams, n = 1..4."""

    bleu: float
    """Score in [0, 1]."""
    matches: tuple[int, ...]
    """Clipped n-gram matches."""
    totals: tuple[int, ...]
    """N-grams of the hypotheses."""
    brevity_penalty: float
    hypothesis_length: int
    """Words of all hypotheses."""
    reference_length: int
    """Words of the references closest in length to each hypothesis; the shorter one on a tie."""

    @property
    def precisions(self) -> tuple[float, ...]:
        """Matches over totals, 0 where there are no n-grams."""
        return tuple(m / t if t else 0.0 for m, t in zip(self.matches, self.totals, strict=True))


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU of `hypotheses`, where `references[i]` are the accepted texts for `hypotheses[i]`.

    Raises ValueError if the lengths differ, there is nothing to compare, or a hypothesis has no reference.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"{len(hypotheses)} hypotheses need as many lists of references (got {len(references)}), at least one"
        )
    if not all(references):
        raise ValueError("every hypothesis needs at least one reference")
    most = max(len(r) for r in references)
    # sacrebleu wants one stream per reference number, with None where a hypothesis has fewer.
    streams = [[_words(r[k]) if k < len(r) else None for r in references] for k in range(most)]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    score = metric.corpus_score([_words(h) for h in hypotheses], streams)
    return Bleu(score.score / 100, tuple(score.counts), tuple(score.totals), score.bp, score.sys_len, score.ref_len)


def _words(text: str) -> str:
    return " ".join(text.lower().split())

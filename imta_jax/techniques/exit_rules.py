"""Exit rules: the score of an image at an exit. It leaves where the score reaches a threshold.

A rule is a function of JAX arrays:

    rule(logits, **options) -> score                     # [N, K] -> [N]
    rule(logits, carry, **options) -> (score, carry)     # with a memory of earlier exits

`carry` is None at the first exit; after that, it is what the rule returned, any pytree of arrays
with the images along the first axis. Scores are finite and below 1e8, which is the threshold of an
exit where no image leaves. Thresholds are chosen on the scores of validation images, so a rule may
have any scale.

The rule of the paper (Sec. 4) is `confidence`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imta_jax.runtime.registry import register_exit_rule


@register_exit_rule("confidence")
def confidence_score(logits: Float[Array, "N K"]) -> Float[Array, " N"]:
    """The highest softmax probability."""
    return jax.nn.softmax(logits).max(axis=-1)


@register_exit_rule("entropy")
def entropy_score(logits: Float[Array, "N K"]) -> Float[Array, " N"]:
    """1 - H / log K, with the entropy H of the softmax: 0 for equal probabilities, at most 1.

    BranchyNet (Teerapittayanon et al., ICPR 2016) leaves at a low entropy.
    """
    log_probability = jax.nn.log_softmax(logits)
    probability = jnp.exp(log_probability)
    # 0 log 0 = 0, also for classes with logits of -inf.
    terms = jnp.where(probability > 0, probability * log_probability, 0.0)
    return 1 + terms.sum(axis=-1) / jnp.log(logits.shape[-1])


@register_exit_rule("margin")
def margin_score(logits: Float[Array, "N K"]) -> Float[Array, " N"]:
    """The difference of the two highest softmax probabilities."""
    highest, _ = jax.lax.top_k(jax.nn.softmax(logits), 2)
    return highest[:, 0] - highest[:, 1]


@register_exit_rule("patience")
def patience_score(
    logits: Float[Array, "N K"], carry: tuple[Int[Array, " N"], Float[Array, " N"]] | None
) -> tuple[Float[Array, " N"], tuple[Int[Array, " N"], Float[Array, " N"]]]:
    """The number of exits in a row that predict the same class, this one included.

    Zhou et al., "BERT Loses Patience", NeurIPS 2020, Sec. 3.2.
    """
    prediction = logits.argmax(axis=-1)
    score = jnp.ones(prediction.shape, jnp.float32)
    if carry is not None:
        previous, length = carry
        score = jnp.where(prediction == previous, length + 1, 1.0)
    return score, (prediction, score)

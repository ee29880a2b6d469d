"""Exit rules: scores of images. An image leaves at the first exit whose score reaches a threshold.

A rule is a function of JAX arrays:

    rule(logits, **options) -> score                     # [N, K] -> [N]
    rule(logits, carry, **options) -> (score, carry)     # with a memory of earlier exits

`carry` is None at the first exit; after that, it is what the rule returned, any pytree of arrays
with the images along the first axis. Scores are finite and below 1e8, which is the threshold of an
exit where no image leaves. Thresholds are chosen on the scores of validation images, so a rule may
have any scale.

A rule with parameters that are fitted on validation images is decorated with `fitted_by`.

The rule of the paper (Sec. 4) is `confidence`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

from imta_jax.errors import InputError
from imta_jax.runtime.factories import failure_of
from imta_jax.runtime.registry import (
    EXIT_RULES,
    accepted_keywords,
    check_options,
    dotted_path_of,
    register_exit_rule,
)

DEFAULT_EXIT_RULE = "confidence"
_CARRY, _FIT = "carry", "fit"
Rule = TypeVar("Rule", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class ExitRule:
    """A rule with its options.

    Attributes:
      name: registered name or dotted path; the path of a function that was passed directly.
      function: function of logits; see the module docstring.
      options: keyword arguments of the function.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def is_default(self) -> bool:
        """Whether scores are the highest softmax probabilities."""
        return self.function is confidence_score

    def __call__(self, logits: Float[Array, "N K"], carry: Any) -> tuple[Float[Array, " N"], Any]:
        """Score and carry of one exit; the carry of a rule without memory is None.

        Raises:
          InputError: a score or carry of another shape.
        """
        if _CARRY in (accepted_keywords(self.function) or ()):
            outputs = self.function(logits, carry=carry, **self.options)
            if not isinstance(outputs, tuple) or len(outputs) != 2:
                raise InputError(
                    f"exit rule {self.name!r} has a carry and must return (score, carry); found "
                    f"{outputs!r}"
                )
            score, carry = outputs
        else:
            score, carry = self.function(logits, **self.options), None
        self._check(score, carry, logits.shape[0])
        return jnp.asarray(score, jnp.float32), carry

    def fitted(
        self,
        logits: Float32[np.ndarray, "E N K"],
        labels: Int[np.ndarray, " N"],
        costs: Num[np.ndarray, " E"],
    ) -> "ExitRule":
        """The rule with options fitted on validation images; itself if it has nothing to fit.

        Args:
          logits: logits of all exits.
          labels: 0..K-1.
          costs: cumulative cost of each exit.
        """
        fit = getattr(self.function, _FIT, None)
        if fit is None:
            return self
        return dataclasses.replace(self, options=fit(logits, labels, costs, **self.options))

    def _check(self, score: Any, carry: Any, images: Any) -> None:
        # An export traces rules with a symbolic number of images.
        if getattr(score, "shape", None) != (images,):
            raise InputError(
                f"exit rule {self.name!r} must return one score per image, shape ({images},); "
                f"found {getattr(score, 'shape', score)}"
            )
        for leaf in jax.tree.leaves(carry):
            if getattr(leaf, "shape", ())[:1] != (images,):
                raise InputError(
                    f"the carry of exit rule {self.name!r} must have the images along the first "
                    f"axis of every array, size {images}; found {getattr(leaf, 'shape', leaf)}"
                )


def fitted_by(fit: Callable[..., dict[str, Any]]) -> Callable[[Rule], Rule]:
    """Returns a decorator for a rule whose options are fitted on validation images.

    Evaluation calls `fit(logits, labels, costs, **options)` with NumPy arrays: logits [E, N, K],
    labels [N] and the cumulative costs [E]. It uses and records the options that `fit` returns;
    they must be JSON values.
    """

    def decorate(rule: Rule) -> Rule:
        setattr(rule, _FIT, fit)
        return rule

    return decorate


def get_exit_rule(
    rule: str | Callable[..., Any] | ExitRule,
    options: Mapping[str, Any] | None = None,
    field: str = "exit_rule",
) -> ExitRule:
    """The exit rule of a name, a dotted path or a function.

    Args:
      rule: a name in `imta_jax.register_exit_rule`, "package.module:name", or a function.
      options: keyword arguments of the function.
      field: config field of the rule, for error messages.

    Raises:
      InputError: an unknown name or option.
    """
    if isinstance(rule, ExitRule):
        return rule
    function = EXIT_RULES.get(rule, field) if isinstance(rule, str) else rule
    name = rule if isinstance(rule, str) else dotted_path_of(rule)
    options = dict(options or {})
    # The function gets logits and a carry from the driver, the options from the config.
    check_options(function, options, f"{field} {name!r}", num_positional=1)
    if _CARRY in options:
        raise InputError(f"option of {field} {name!r}: 'carry' is not an option")
    return ExitRule(name, function, options)


def check_exit_rule(rule: ExitRule, num_exits: int, num_classes: int) -> list[Any]:
    """Calls a rule abstractly at all exits. A rule that is fitted is first fitted to noise.

    Returns:
      Per exit, the carry that it returns for one image, as shapes.

    Raises:
      InputError: the rule fails, or returns another shape.
    """
    logits = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
    carries: list[Any] = [None]
    try:
        rule = rule.fitted(*_noise(num_exits, num_classes))
        for _ in range(num_exits):
            carries.append(jax.eval_shape(rule, logits, carries[-1])[1])
    except Exception as error:
        label = (
            f"exit rule {rule.name!r}, called at exit {len(carries)} with logits {logits.shape},"
        )
        raise failure_of(label, error) from error
    return carries[1:]


def _noise(num_exits: int, num_classes: int, num_images: int = 64) -> tuple[np.ndarray, ...]:
    """Random logits, labels and costs, as arguments of `ExitRule.fitted`."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(num_exits, num_images, num_classes)).astype(np.float32)
    return logits, generator.integers(0, num_classes, num_images), np.arange(1.0, num_exits + 1)


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

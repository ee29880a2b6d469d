"""The type checker that jaxtyping's import hook applies in tests (conftest.py)."""

from beartype import BeartypeConf, beartype

# An int is accepted where a float is annotated (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

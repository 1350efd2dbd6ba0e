"""The adapters of smoke's tests."""

from tests.smoke.conftest import two_adapters

__all__ = ["two_adapters"]

"""jaxtyping's annotations of dtypes and shapes, for modules that a merge of plain files imports.

The import of jaxtyping takes almost as long as NumPy's. So its types are used where it is imported
before, as by the tests that check annotations at each call, and where types are checked without
running. Elsewhere an annotation is `Any`.
"""

import sys
from typing import TYPE_CHECKING, Any, final

__all__ = ["Bool", "Float", "Float32", "Float64", "Int32", "Int64", "Shaped"]

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, Shaped
else:

    @final
    class _Unchecked:
        """An annotation of an array that nothing checks."""

        def __class_getitem__(cls, _: object) -> object:
            return Any

    Bool = Float = Float32 = Float64 = Int32 = Int64 = Shaped = _Unchecked

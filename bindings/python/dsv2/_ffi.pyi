# The generated view of the C headers: cffi's own types are dynamic.
from typing import Any

ffi: Any

"""One way to run recorded decoder layers, with three backends that give the same numbers up to rounding.

``modules`` calls the model's own modules; ``fused`` computes layers of the Llama kind in few operations of torch;
``kernels`` computes these, and the linear maps of other layers, in compiled C. docs/design/0016 says more.
"""

from typing import Literal

RunnerName = Literal["auto", "modules", "fused", "kernels"]

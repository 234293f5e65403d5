"""`alexprep bench`: what this machine does, each figure measured against a baseline.

benchmarks/ has what is compared with other libraries, at the size of ILSVRC and on GPUs.
"""

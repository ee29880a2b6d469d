"""Programs of all networks, compiled for GPUs that are not attached: memory, collectives, times.

    python benchmarks/gpu_programs.py --out=benchmarks/results/gpu_programs.json

See `tpu_programs.py`. Times of kernels are assumed: 2 us each, and the bandwidth of the memory.
"""

from benchmarks import tpu_programs

GPUS = ("h100:8", "h200:8", "h100:64")

if __name__ == "__main__":
    tpu_programs.main(GPUS)

"""Plans of runs for accelerators that are not attached, from programs that XLA compiles for them.

The TPU and CUDA compilers run on any x86-64 Linux host. `plan.make_plan` compiles the programs of a
run for a topology, and estimates memory and time from what the compilers report. Nothing is
executed.
"""

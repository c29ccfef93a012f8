"""Benchmark tasks: LongBench, L-Eval, SQuALITY and QMSum files as published, and every task of lm-eval."""

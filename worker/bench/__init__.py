"""The process that holds the models: standard library, numpy and llama_cpp only.

It runs under the interpreter of the build it measures, apart from the worker, so that a crash,
a hang or an out-of-memory kill of llama.cpp takes one job and nothing else.
"""

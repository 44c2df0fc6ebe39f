"""mode=bench: time, memory, operations and error of mechanisms, beside other implementations; timing is interleaved."""

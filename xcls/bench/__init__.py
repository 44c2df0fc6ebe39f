"""mode=bench: time, memory, operations and error of mechanisms, interleaved, beside other implementations."""

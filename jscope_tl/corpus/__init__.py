"""Many prompts: explained one after another, written as Parquet files, resumed, sharded, and asked afterwards.

`schema` says what is written, the run of prompts writes it, the data set reads it.
"""

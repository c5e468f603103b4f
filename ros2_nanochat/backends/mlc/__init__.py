"""Model libraries compiled by MLC-LLM, on the TVM runtime."""

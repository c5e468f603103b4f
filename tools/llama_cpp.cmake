# Read by llama.cpp's build (tools/llama_cpp.py): llama-cpp-python switches its common library on, which nothing in Python uses.
set(LLAMA_BUILD_COMMON OFF)

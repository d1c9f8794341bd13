# llama.cpp's project() call includes this file when llama-cpp-python is compiled.
# llama-cpp-python forces LLAMA_BUILD_COMMON on in the cache, yet of what it installs only the
# multimodal part links to it. A normal variable shadows the cache, and llama.cpp's option()
# leaves a normal variable alone (policy CMP0077), so three quarters of the compile are not done.
if(NOT LLAVA_BUILD)
    set(LLAMA_BUILD_COMMON OFF)
endif()

"""specfarm: does speculative decoding pay here, and with which draft and K?"""

__version__ = "0.1.0"

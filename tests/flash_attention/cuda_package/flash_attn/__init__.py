__version__ = "2.8.3"
flash_attn_func = None

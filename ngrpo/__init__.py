"""ngrpo: does an exploration trick in RLVR rollouts really help, by how much, and at what cost?"""

__version__ = "0.1.0"

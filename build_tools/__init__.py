"""How gid_cuda is built: what it needs of the machine (host.py), which CUDA compiler (cuda.py), the compile itself
(compile.py), and the entry for pip (backend.py)."""

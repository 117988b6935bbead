"""How gid_cuda is built: which CUDA compiler (cuda.py), the compile itself (compile.py), pip's entry (backend.py)."""

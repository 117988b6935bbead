"""What `mkdocs build` needs besides mkdocs: pages made from source, equations without a script, checked links."""

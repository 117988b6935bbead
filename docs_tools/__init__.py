"""What `mkdocs build` needs besides mkdocs: pages made from source, equations without JavaScript, links that are checked."""

"""`sasr check`: what a task's data hold, before anything is trained on them."""

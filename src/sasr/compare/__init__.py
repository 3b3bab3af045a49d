"""`sasr compare`: methods x seeds on one task at an equal budget, run by run, with statistics that fit few seeds."""

"""The drivers over the layers below: fit, evaluate, bundle, export, recipe. Only what trains needs torch."""

"""Picture -> frozen feature maps: backbones and their weights, patches, coreset, nearest neighbours."""

"""The fold: plans that move an affine into the operators around it, chosen and committed until none gains."""

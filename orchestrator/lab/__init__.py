"""Training of priors, the model family, and the evaluation of what they make."""

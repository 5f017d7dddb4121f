"""What goes to the Hub besides weights: the commit, the model card, code on request, the inference handler."""

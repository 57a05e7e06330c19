"""What a `RefinedClassifier` is made of: for whoever changes how documents get their label.

`labels` reads what the user names, `scores` has the arithmetic of similarities and probabilities, `memory` what was
learnt of each label.
"""

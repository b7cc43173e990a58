"""Writing a text token by token as a Markov decision process, behind Gymnasium's interface."""

__version__ = "0.1.0"

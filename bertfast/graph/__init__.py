"""bertfast.graph"""

"""bertfast.runtime"""

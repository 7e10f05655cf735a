"""bertfast.engine"""

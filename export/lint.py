"""placeholder"""
def lint_bundle(*a,**k): return []
def refuse(f): pass

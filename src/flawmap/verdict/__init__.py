"""Layer 4: from scores to a promise.

calibration  good parts held out of fitting -> threshold, verdict, p-value, and the promise in a sentence
metrics      AUROC, average precision, F1-max oracle; false alarms and escapes with their intervals
bootstrap    how far an AUROC could lie from the one found
pixels       pixel AUROC, average precision, PRO, sPRO, AUPIMO and oracles, in bounded memory
curves       the areas under these curves, from counts, with a bound of the error
regions      a map above its threshold -> mask and connected regions
"""

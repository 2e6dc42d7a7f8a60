"""Layer 4: from scores to a promise, and how it is checked.

calibration  good parts held out of fitting -> threshold, verdict, p-value, and the promise in a sentence
parts        pictures as parts: what is counted
stored       calibration.json -> calibration, made anew and compared
policies     known defects, costs, a person's number -> threshold, and what it promises
rates        exact bounds of a rate; the rank that keeps a promise
metrics      AUROC, average precision, F1-max oracle; false alarms and escapes with their intervals
bootstrap    how far an AUROC could lie from the one found, and from that of another run
pixels       pixel AUROC, average precision, PRO, sPRO, AUPIMO and oracles, in bounded memory
curves       the areas under these curves, from counts, with a bound of the error
regions      a map above its threshold -> mask and connected regions
acceptance   escapes and false alarms by kind and size of defect
agreement    verdicts of the same parts presented again: effectiveness, kappa
gauge        gauge R&R of the score
drift        whether parts still come as those of the calibration: martingale, control charts
"""

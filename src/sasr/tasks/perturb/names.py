"""First names: common ones, which can be recognised, and uncommon ones to put in their place.

Women's and men's names are kept apart, so that `she` and `he` still mean the same person. Left out are names that are
also words (Will, May, Mark), places (Austin, Paris) or surnames (Jackson), and names of both women and men (Alex).
"""

from __future__ import annotations

_COMMON_WOMEN = """
Abby Abigail Agnes Aisha Alexandra Alexia Alice Alicia Alison Allison Alyssa Amanda Amelia Amy Ana Andrea Angela
Angelina Angie Anita Ann Anna Annabelle Anne Annie Ariana Audrey Barbara Beatrice Becky Bella Beth Bethany Betsy Betty
Brenda Brianna Bridget Brittany Brooke Camila Cara Carla Carly Carmen Carol Caroline Carolyn Carrie Catherine Cathy
Cecilia Celia Cheryl Chloe Christina Christine Cindy Claire Clara Claudia Colleen Courtney Cynthia Danielle Daria
Debbie Deborah Denise Diana Diane Donna Doris Dorothy Eleanor Elena Elise Eliza Elizabeth Ella Ellen Elsa Emily Emma
Erica Erika Erin Esther Eva Evelyn Fiona Gabriela Gabriella Gail Genevieve Gina Gloria Greta Gwen Haley Hannah Harriet
Heidi Helen Hillary Holly Ingrid Irene Iris Isabel Isabella Isabelle Jane Janet Janice Jasmine Jenna Jennifer Jenny
Jessica Jill Joan Joanna Josephine Judith Judy Julia Juliana Julie Juliet Karen Kate Katherine Kathleen Kathryn Kathy
Katie Katrina Katy Kayla Kelsey Kendra Kiara Kimberly Kimiko Kristen Kristin Kylie Lana Lara Laura Lauren Layla Leah
Leila Lena Lila Lillian Lily Linda Lisa Liz Liza Lizzie Lola Lori Louise Lucia Lucille Lucinda Lucy Lydia Mabel
Madeline Maggie Mandy Marcia Marcy Margaret Maria Mariah Marie Marilyn Marissa Marla Marta Martha Mary Matilda Maya
Megan Melanie Melinda Melissa Mia Michelle Mindy Miranda Miriam Molly Mona Monica Nadia Nancy Naomi Natalia Natalie
Natasha Nicole Nina Nora Olga Olivia Pam Pamela Patricia Patty Paula Pauline Peggy Phoebe Polly Priscilla Rachel
Rebecca Rhonda Rita Rosa Rosalie Rosie Roxanne Ruby Ruth Sabrina Sally Samantha Sandra Sara Sarah Selena Sharon Sheila
Shelby Shelly Shirley Silvia Sonia Sophia Sophie Stacy Stella Stephanie Susan Susie Suzanne Sylvia Tabitha Tamara
Tammy Tanya Tara Teresa Theresa Tiffany Tina Trisha Valerie Vanessa Vera Veronica Vicky Wanda Wendy Yolanda Yvonne Zoe
Zoey
"""
_COMMON_MEN = """
Aaron Abraham Adam Adrian Ahmed Aiden Alan Albert Alejandro Alexander Alfred Allen Alvin Andrew Andy Anthony Antonio
Arnold Arthur Barry Ben Benjamin Bernard Bernie Bert Billy Bob Bobby Boris Brad Bradley Brandon Brendan Brent Brett
Brian Bruce Bruno Bryan Caleb Calvin Carl Carlo Carlos Charles Chester Christopher Clarence Claude Colin Connor Craig
Curtis Dan Daniel Danny Dante Darren Darryl Dave David Dennis Derek Diego Dominic Donald Doug Douglas Dylan Ed Eddie
Edgar Edward Edwin Eli Elias Elijah Elliot Eric Ernest Ernesto Ernie Ethan Eugene Evan Fabian Felix Fernando Francis
Frank Fred Freddie Freddy Frederick Gabriel Gary Gavin Geoffrey George Gerald Gilbert Glenn Gordon Greg Gregory Hank
Hans Harold Harry Hector Henry Herbert Herman Howard Hugo Ian Isaac Ivan Jacob Jake James Jared Jason Javier Jed Jeff
Jeffrey Jeremy Jerome Jerry Jim Jimmy Joe Joel Joey John Johnny Jonah Jonathan Jorge Jose Joseph Josh Joshua Juan
Judah Julian Julio Justin Karl Keith Ken Kenneth Kenny Kevin Kyle Lance Larry Lawrence Leo Leon Leonard Leonardo Liam
Logan Lucas Luis Luke Malcolm Marco Marcus Mario Marlon Martin Marvin Matt Matthew Maurice Melvin Micah Michael Miguel
Mike Mitchell Mohamed Nathan Nathaniel Neil Nicholas Nick Nicolas Noah Norman Olaf Oliver Omar Oscar Owen Pablo
Patrick Paul Pedro Percy Pete Peter Phil Philip Phillip Quentin Ralph Ramon Randy Raphael Raul Ravi Ray Raymond Reggie
Ricardo Richard Rick Ricky Rob Robbie Robert Roberto Rodney Roger Roland Ron Ronald Ronnie Roy Rudy Rupert Russell
Ryan Samuel Scott Sean Sebastian Seth Shaun Simon Stan Stanley Stephen Steve Steven Stewart Stuart Ted Teddy Terrence
Theodore Thomas Tim Timmy Timothy Toby Todd Tom Tommy Tony Travis Trent Trevor Tyrone Victor Vince Vincent Walter
Warren Wayne Wesley William Xavier Zach Zachary Zack
"""
_UNCOMMON_WOMEN = """
Adelheid Bertilda Cunegund Ermentrude Frideswide Gerlind Hildegard Iphigenia Jocosa Kriemhild Liutgard Mechthild
Nepheline Ottoline Perpetua Radegund Sunniva Theodelind Ursulina Vigdis Walburga Xanthippe Yrsa Zenobia
"""
_UNCOMMON_MEN = """
Aethelred Balduin Chlodomer Dagobert Ekkehard Faramund Guntram Hadubrand Isengrim Jaropolk Kunimund Liutprand Merovech
Nithard Odalric Pelagius Quintilian Radomir Sigismund Thorismund Ulfilas Volkmar Wulfstan Xenocrates
"""
COMMON_WOMEN, COMMON_MEN = tuple(_COMMON_WOMEN.split()), tuple(_COMMON_MEN.split())
UNCOMMON_WOMEN, UNCOMMON_MEN = tuple(_UNCOMMON_WOMEN.split()), tuple(_UNCOMMON_MEN.split())
